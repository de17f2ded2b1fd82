"""Made-up lines in the published layout of every data set that is known by name: {name: {file: text}}."""

RATINGS = """userId,movieId,rating,timestamp
1,31,2.5,1260000144
1,1029,3.0,1260000179
1,1061,0.5,1260000182
2,31,4.0,835000493
2,10,5.0,835000441
3,1029,4.5,1298000675
"""
MOVIES = """movieId,title,genres
10,"Made Up, The (1995)",Action|Adventure|Thriller
31,Dangerous Lines (1996),Drama
1029,Café Élan (1941),Animation|Children|Musical
1061,"Said ""So"" (1996)",(no genres listed)
"""
HALVES = {"ratings.csv": RATINGS, "movies.csv": MOVIES}

PUBLISHED: dict[str, dict[str, str]] = {
    "ml-100k": {
        "u.data": "2\t1\t5\t100\n1\t2\t3\t50\n1\t1\t4\t60\n",
        "u.item": f"1|Toys (1995)|01-Jan-1995||http://x|0|0|0|1|1|1{'|0' * 13}\n2|Am\xe9lie|||http://y|1{'|0' * 18}\n",
        "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
    },
    "ml-1m": {
        "ratings.dat": "1::1193::5::978000760\n1::661::3::978002109\n2::1193::4::978300413\n10::48::1::978000474\n",
        "movies.dat": (
            "48::Pocket: Lines (1995)::Animation|Children's|Musical\n"
            '661::The "Peach" (1996)::Animation|Children\'s\n'
            "1193::Am\xe9lie (1975)::Drama\n"
        ),
        "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n10::F::35::1::95370-1234\n",
    },
    "ml-latest-small": HALVES,
    "ml-20m": HALVES,
    "ml-25m": HALVES,
    "ml-32m": HALVES,
    "amazon-2023": {
        "All_Beauty.csv": """user_id,parent_asin,rating,timestamp
AMADEUPAMADEUPAMADEUPAMADEUQ,B000000AA1,4.0,1588000855070
AMADEUPAMADEUPAMADEUPAMADEUQ,B000000AA2,5.0,1589000266052
AFICTIONAFICTIONAFICTIONAFIA,B000000AA2,1.0,1626000509785
""",
        "Video_Games.csv": """user_id,parent_asin,rating,timestamp
AMADEUPAMADEUPAMADEUPAMADEUQ,B000000BB1,2.0,1608000804795
AGHOSTSAGHOSTSAGHOSTSAGHOSTQ,B000000BB2,5.0,1587000114941
""",
        "meta_All_Beauty.jsonl": (
            '{"main_category": "All Beauty", "title": "Howdy Spray", "average_rating": 4.8, "rating_number": 10, '
            '"features": [], "description": [], "price": null, "images": [], "videos": [], "store": "Howdy", '
            '"categories": [], "details": {"Brand": "Howdy"}, "parent_asin": "B000000AA1", "bought_together": null}\n'
            '{"main_category": "All Beauty", "title": "Nails, 10 ct", "average_rating": 3.0, "rating_number": 3, '
            '"features": ["a"], "description": [], "price": 9.99, "images": [], "videos": [], "store": null, '
            '"categories": ["Beauty", "Nails"], "details": {}, "parent_asin": "B000000AA2", "bought_together": null}\n'
            '{"main_category": null, "title": "Of few", "average_rating": 5.0, "rating_number": 1, '
            '"features": [], "description": [], "price": null, "images": [], "videos": [], "store": null, '
            '"categories": [], "details": {}, "parent_asin": "B000000AA9", "bought_together": null}\n'
        ),
    },
    "lastfm": {
        "user_artists.dat": "userID\tartistID\tweight\r\n2\t51\t1200\r\n2\t52\t345\r\n3\t51\t6\r\n",
        "artists.dat": (
            "id\tname\turl\tpictureURL\n"
            '51\tThe "Quoted\thttp://www.last.fm/music/a\thttp://x/1.jpg\n'
            '52\t"Rós"\thttp://www.last.fm/music/b\t\n'
        ),
    },
    "yelp": {
        "yelp_academic_dataset_review.json": (
            '{"review_id":"r1","user_id":"u-_1","business_id":"bA","stars":3.0,"useful":0,"funny":0,"cool":0,'
            '"text":"Fine, \\"really\\".\\nYes","date":"2018-07-01 22:00:11"}\n'
            '{"review_id":"r2","user_id":"u-_1","business_id":"bB","stars":5.0,"useful":1,"funny":0,"cool":1,'
            '"text":"Caf\\u00e9","date":"2012-01-01 15:00:18"}\n'
            '{"review_id":"r3","user_id":"zz9","business_id":"bA","stars":4.0,"useful":0,"funny":0,"cool":0,'
            '"text":"","date":"2014-02-01 20:00:30"}\n'
        ),
        "yelp_academic_dataset_business.json": (
            '{"business_id":"bA","name":"Caf\\u00e9 A","address":"1 Road","city":"Reno","state":"NV","stars":3.5,'
            '"review_count":2,"is_open":1,"attributes":{"WiFi":"no"},"categories":"Coffee & Tea, Food","hours":null}\n'
            '{"business_id":"bB","name":"B","address":"","city":"Tampa","state":"FL","stars":5.0,'
            '"review_count":1,"is_open":0,"attributes":null,"categories":null,"hours":{"Monday":"0:0-0:0"}}\n'
        ),
    },
    "taobao": {
        "UserBehavior.csv": (
            "1,2000018,300077,pv,1511600070\n1,2000046,300071,fav,1511600733\n1,2000018,300077,cart,1511600885\n"
            "1,2000018,300077,buy,1511600493\n100,2000046,300071,pv,1511700600\n"
        ),
    },
    "mind": {
        "MINDsmall_train/behaviors.tsv": (
            "1\tU101\t11/11/2019 9:05:58 AM\tN1001 N1002\tN2001-1 N2002-0\n"
            "2\tU202\t11/12/2019 6:11:30 PM\t\tN2003-0 N2001-1\n"
            "3\tU101\t11/11/2019 9:06:58 AM\tN1001 N1002\tN2002-1\n"
        ),
        "MINDsmall_dev/behaviors.tsv": "1\tU101\t11/15/2019 12:00:00 AM\tN1001 N1002 N2001\tN2003-1 N1-0\n",
        "MINDsmall_train/news.tsv": (
            'N2001\tsports\tfootball_nfl\tHe "said" so\tIt was said.\thttps://x/a.html\t[]\t[]\n'
            'N2002\tnews\tnewsus\t"No 5\t\thttps://x/b.html\t[]\t[]\n'
            "N1001\ttv\tcelebrity\tBefore\tAn abstract.\thttps://x/c.html\t[]\t[]\n"
        ),
        "MINDsmall_dev/news.tsv": (
            'N2001\tsports\tfootball_nfl\tHe "said" so\tIt was said.\thttps://x/a.html\t[]\t[]\n'
            'N2003\tlifestyle\tpets\t"Dogs" or not\tOf dogs.\thttps://x/d.html\t[]\t[]\n'
        ),
    },
    "kuairec": {
        "KuaiRec 2.0/data/big_matrix.csv": (
            "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
            "0,36,12000,10000,2020-07-05 00:00:03.438,20200705,1593878403.438,1.2\n"
            "0,95,28000,10000,2020-07-05 00:08:21.297,20200705,1593878901.297,2.8\n"
            "14,36,20000,10000,2020-07-05 00:16:06.687,20200705,1593879366.687,2.0\n"
        ),
        "KuaiRec 2.0/data/item_categories.csv": 'video_id,feat\n36,[8]\n95,"[27, 9]"\n',
        "KuaiRec 2.0/data/user_features.csv": (
            "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
            "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,"
            "register_days,register_days_range,onehot_feat0\n"
            '0,high_active,0,0,0,5,"(0,10]",0,0,0,0,107,61-90,0\n'
            '14,full_active,0,0,0,386,"(250,500]",4,"[1,10)",2,"[1,5)",327,181-365,1\n'
        ),
    },
}
